"""Training score networks: losses, weight averages, the trainer."""
