"""The Django app: trees declared in settings, commands, system checks, and a signal when a tree has changed.

Put `"perfkit.contrib.django"` into `INSTALLED_APPS`. From code, `perfkit.contrib.django.trees` has the functions and
`perfkit.contrib.django.signals` the signal; `perfkit.contrib.django.management` has the base class for commands.
"""
