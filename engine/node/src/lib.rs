//! The engine role: log client, workers, gateway.
