"""Training of the router that :class:`anydepth.deploy.runtime.control.RoutedDepth` runs, with PyTorch."""
