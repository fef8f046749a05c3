# The demo's Django application (tests/demo/app.py): cache, sessions, locks, channels and Celery, all behind REDIS_URL.
FROM python:3.12-slim-bookworm
WORKDIR /app
COPY tests/requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY tests/demo/app.py ./
USER 65534:65534
EXPOSE 8000
CMD ["python", "-m", "daphne", "-b", "0.0.0.0", "-p", "8000", "app:application"]
