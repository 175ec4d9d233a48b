"""What an inference method is: settings, a checked plan, a run of the driver, a posterior."""
