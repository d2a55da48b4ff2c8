"""Read archives of others from a distance: zip and tar, their members, and what packs them."""
