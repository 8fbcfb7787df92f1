//! Why AF_XDP sockets cannot be opened, for the user.

use std::{error, fmt, io};

/// Why the sockets could not be opened. One line, with the remedy.
#[derive(Debug)]
pub enum XskError {
    /// A size or a name that cannot work.
    Config(String),
    /// The kernel refused.
    Bind {
        interface: String,
        queue: u32,
        step: &'static str,
        source: io::Error,
    },
}

impl XskError {
    pub(super) fn config(error: impl fmt::Display) -> Self {
        Self::Config(error.to_string())
    }
}

impl fmt::Display for XskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (interface, queue, step, source) = match self {
            Self::Config(problem) => return write!(f, "AF_XDP: {problem}"),
            Self::Bind {
                interface,
                queue,
                step,
                source,
            } => (interface, queue, step, source),
        };
        write!(f, "cannot {step} on queue {queue} of {interface}: ")?;
        match source.raw_os_error() {
            Some(libc::EPERM) => write!(f, "not permitted; it needs CAP_NET_RAW"),
            Some(libc::ENOBUFS) => write!(
                f,
                "its frames exceed the limit on locked memory; give CAP_IPC_LOCK or raise \
                 RLIMIT_MEMLOCK (ulimit -l)"
            ),
            Some(libc::EBUSY) => write!(
                f,
                "another AF_XDP socket holds the queue; stop the program that has it (ss --xdp -p)"
            ),
            Some(libc::EINVAL) => write!(
                f,
                "the interface has no such queue (see ethtool -l {interface}), or is down"
            ),
            Some(libc::ENODEV | libc::ENXIO) => write!(f, "there is no such interface"),
            Some(libc::ENETDOWN) => {
                write!(
                    f,
                    "the interface is down; bring it up with ip link set {interface} up"
                )
            }
            Some(libc::EOPNOTSUPP) => write!(
                f,
                "the driver does not support the mode; turn zero_copy off"
            ),
            Some(libc::EAFNOSUPPORT) => write!(f, "the kernel is built without AF_XDP"),
            _ => write!(f, "{source}"),
        }
    }
}

impl error::Error for XskError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Config(_) => None,
            Self::Bind { source, .. } => Some(source),
        }
    }
}

/// The error of the system call behind an error of the library.
pub(super) fn os_error(error: &dyn error::Error) -> io::Error {
    let source = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}
