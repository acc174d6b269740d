//! One io_uring for sockets, disk and wake-ups, with one place to wait.
