"""Building blocks of both detector families, switchable by depth or shared by all depths."""
