"""Training of any-depth detectors with Lightning: depth schedule, distillation, optimisation, averaging."""
