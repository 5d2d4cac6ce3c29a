# A mounted secret may be read by every user of its container. These three are refused then by who reads them
# (libpq, localpods), or are written to (Airflow's users): they are copied to where only this user looks.
set -eu
umask 077
for name in pgpass pods-token airflow-passwords.json; do
  if [ -f "/run/secrets/$name" ]; then cp "/run/secrets/$name" "/run/private/$name"; fi
done
exec "$@"
