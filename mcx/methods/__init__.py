"""What an inference method is: settings that make a checked plan, a run of the driver, and a posterior."""
