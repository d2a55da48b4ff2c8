from django.urls import path
from rules.views import current_rules

urlpatterns = [path("", current_rules)]
