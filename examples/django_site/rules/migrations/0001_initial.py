from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Release",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("version", models.CharField(max_length=200)),
                ("generation", models.PositiveIntegerField()),
                ("loaded", models.DateTimeField(auto_now=True)),
            ],
        ),
        migrations.CreateModel(
            name="Rule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True)),
                ("action", models.CharField(choices=[("allow", "allow"), ("deny", "deny")], max_length=5)),
                ("pattern", models.CharField(max_length=200)),
            ],
            options={"ordering": ("name",)},
        ),
    ]
