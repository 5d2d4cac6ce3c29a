# A mounted secret may be read by every user of its container, and written by none. That is not what those want who
# read these three (libpq, localpods, Airflow's users): they get copies where only this user looks.
set -eu
umask 077
for name in pgpass pods-token airflow-passwords.json; do
  if [ -f "/run/secrets/$name" ]; then cat "/run/secrets/$name" > "/run/private/$name"; fi
done
exec "$@"
