"""The retrieval service: Ray actors that embed and rank for several trainers."""
