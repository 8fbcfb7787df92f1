//! nginx as the backend: files to fetch, uploads to keep, the client's address to tell.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::content;
use crate::process::{Process, until};
use crate::topology::Namespace;

/// Plain HTTP.
pub(crate) const HTTP: &str = "127.0.0.1:8080";
/// HTTP after a PROXY protocol header; answers with the address that the header names.
pub(crate) const HTTP_PROXIED: &str = "127.0.0.1:8081";
const MIB: u64 = 1 << 20;

/// The files to fetch, with their hashes.
pub(crate) struct Site {
    root: PathBuf,
    files: Vec<(String, String)>,
}

impl Site {
    /// Makes `<n>m` for every size in MiB, and `small` of 1 KiB.
    pub(crate) fn make(directory: &Path, sizes_mib: &[u64]) -> Result<Self, String> {
        let root = directory.join("site");
        for sub in ["", "uploads"] {
            std::fs::create_dir_all(root.join(sub))
                .map_err(|error| format!("cannot make {}: {error}", root.display()))?;
        }
        let mut files = vec![("small".to_owned(), 1024)];
        files.extend(
            sizes_mib
                .iter()
                .map(|size| (format!("{size}m"), size * MIB)),
        );
        let files = files
            .into_iter()
            .map(|(name, bytes)| {
                let hash = content::make_file(&root.join(&name), bytes, bytes ^ 0x5eed)?;
                Ok((name, hash))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { root, files })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn hash(&self, name: &str) -> Result<&str, String> {
        self.files
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, hash)| hash.as_str())
            .ok_or_else(|| format!("no file {name} was made"))
    }

    /// Starts nginx in the namespace and waits until it listens.
    pub(crate) fn serve(&self, namespace: &Namespace, directory: &Path) -> Result<Process, String> {
        let prefix = directory.join("nginx");
        std::fs::create_dir_all(&prefix)
            .map_err(|error| format!("cannot make {}: {error}", prefix.display()))?;
        let config = prefix.join("nginx.conf");
        std::fs::write(&config, self.config(&prefix))
            .map_err(|error| format!("cannot write {}: {error}", config.display()))?;
        let mut nginx = namespace
            .cmd("nginx")
            .arg("-p")
            .arg(&prefix)
            .arg("-e")
            .arg(prefix.join("error.log"))
            .arg("-c")
            .arg(&config)
            .spawn()?;
        until(Duration::from_secs(10), "nginx to listen", || {
            if let Some(status) = nginx.poll()? {
                let log = std::fs::read_to_string(prefix.join("error.log")).unwrap_or_default();
                return Err(format!("nginx ended ({status}): {} {log}", nginx.stderr()));
            }
            let sockets = namespace.cmd("ss").args(["-Hltn"]).run()?;
            Ok([HTTP, HTTP_PROXIED].iter().all(|end| sockets.contains(end)))
        })?;
        Ok(nginx)
    }

    fn config(&self, prefix: &Path) -> String {
        let prefix = prefix.display();
        let root = self.root.display();
        format!(
            "daemon off;
# One process, so that ending it ends all of it.
master_process off;
pid {prefix}/pid;
error_log {prefix}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 10000000;
    client_max_body_size 0;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    server {{
        listen {HTTP} backlog=1024;
        root {root};
        location /uploads/ {{ dav_methods PUT; }}
    }}
    server {{
        listen {HTTP_PROXIED} proxy_protocol;
        location / {{ return 200 \"$proxy_protocol_addr\"; }}
    }}
}}
"
        )
    }
}
