-- What docker-compose.yaml needs beside the database "airflow", which the image makes itself.
CREATE DATABASE lifecycle;
CREATE DATABASE mlflow;
