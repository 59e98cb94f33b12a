"""Running bundles with numpy, Pillow and one inference engine, never torch."""
