"""Change only what changed: releases, plans, routes, and the updater that commits them."""
