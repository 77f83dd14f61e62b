"""What the service says about itself, without saying anything of its users."""
