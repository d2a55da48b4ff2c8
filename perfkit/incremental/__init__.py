"""Change only what changed: releases, updates, rollback."""
