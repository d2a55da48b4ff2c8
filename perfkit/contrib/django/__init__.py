"""The Django app: trees declared in the settings, commands, system checks, and a signal when a tree has changed.

Add `"perfkit.contrib.django"` to `INSTALLED_APPS`. `perfkit.contrib.django.trees` has the functions for code,
`perfkit.contrib.django.signals` the signal, `perfkit.contrib.django.management` the base class for commands.
"""
