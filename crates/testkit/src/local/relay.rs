//! The way from a function's container to servers on the host's 127.0.0.1, by Unix sockets in the folder that both see.
//!
//! A container has a network of its own, and our servers listen on 127.0.0.1 only. So the host serves each port on a
//! socket in the function's code folder ([`serve_ports`]), and inside the container [`run_with_relay`] listens on the
//! same ports of the container's own 127.0.0.1: a URL means the same on both sides, and nothing new can be reached from
//! outside. Blocking, one thread for each direction of a connection.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

/// Serves each port of the host's 127.0.0.1 as `PORT.sock` in `folder`, until the process ends.
pub(super) fn serve_ports(folder: &Path, ports: &[u16]) -> Result<()> {
    for port in ports {
        let path = folder.join(format!("{port}.sock"));
        let sockets =
            UnixListener::bind(&path).with_context(|| format!("bind {}", path.display()))?;
        let port = *port;
        thread::spawn(move || {
            for inside in sockets.incoming().flatten() {
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    connect_both(inside, server);
                }
            }
        });
    }
    Ok(())
}

/// In the container: listens on the port of every socket beside `program`, then runs `program` and waits for its end.
///
/// # Errors
/// If a port is taken, or the program cannot be started or fails.
pub fn run_with_relay(program: &Path) -> Result<()> {
    let folder = program.parent().context("find the program's folder")?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "sock")
        {
            listen_for(path)?;
        }
    }
    let status = Command::new(program).status();
    let status = status.with_context(|| format!("run {}", program.display()))?;
    if !status.success() {
        bail!("{} ended: {status}", program.display());
    }
    Ok(())
}

fn listen_for(socket: PathBuf) -> Result<()> {
    let port = socket
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    let port: u16 = port
        .parse()
        .with_context(|| format!("{} names no port", socket.display()))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("bind 127.0.0.1:{port}"))?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if let Ok(outside) = UnixStream::connect(&socket) {
                connect_both(outside, client);
            }
        }
    });
    Ok(())
}

/// Copies both directions until each side has ended its own. A failure ends only this connection.
fn connect_both(socket: UnixStream, tcp: TcpStream) {
    let (Ok(mut socket_in), Ok(mut tcp_out)) = (socket.try_clone(), tcp.try_clone()) else {
        return;
    };
    thread::spawn(move || {
        io::copy(&mut socket_in, &mut tcp_out).ok();
        tcp_out.shutdown(Shutdown::Write).ok();
    });
    let (mut tcp_in, mut socket_out) = (tcp, socket);
    thread::spawn(move || {
        io::copy(&mut tcp_in, &mut socket_out).ok();
        socket_out.shutdown(Shutdown::Write).ok();
    });
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// A server that answers each connection with what it got, in capitals.
    fn server() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                stream.write_all(text.to_uppercase().as_bytes()).unwrap();
            }
        });
        port
    }

    #[test]
    fn a_server_of_the_host_answers_at_another_port_through_the_socket() {
        let folder = std::env::temp_dir().join(format!("billhook-relay-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let served = server();
        serve_ports(&folder, &[served]).unwrap();
        // Here both sides have one 127.0.0.1, so the inner port is another one.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let inner = free.local_addr().unwrap().port();
        drop(free);
        let renamed = folder.join(format!("{inner}.sock"));
        fs::rename(folder.join(format!("{served}.sock")), &renamed).unwrap();
        listen_for(renamed).unwrap();
        for text in ["one", "two"] {
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, inner)).unwrap();
            client.write_all(text.as_bytes()).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, text.to_uppercase());
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
