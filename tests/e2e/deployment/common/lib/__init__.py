"""What all modules of the deployment share."""
