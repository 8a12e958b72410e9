//! TCP: a server that tells each client the address it saw, and its client.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

pub fn serve(addr: &str, name: &str) -> Result<()> {
    let listener = TcpListener::bind(addr).with_context(|| format!("listen on {addr}"))?;
    println!("listening {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        // A client that has gone away meanwhile is its own affair.
        if let Ok(peer) = stream.peer_addr() {
            let _ = writeln!(stream, "{name} {}", peer.ip().to_canonical());
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
    Ok(())
}

pub fn ask(addr: &str, milliseconds: u64) -> Result<()> {
    let limit = Duration::from_millis(milliseconds);
    let to: SocketAddr = addr.parse().with_context(|| format!("{addr} is no ADDR:PORT"))?;
    let mut stream = TcpStream::connect_timeout(&to, limit).with_context(|| format!("connect to {addr}"))?;
    stream.set_read_timeout(Some(limit))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("read from {addr}"))?;
    anyhow::ensure!(!answer.is_empty(), "{addr} closed the connection without an answer");
    print!("{answer}");
    Ok(())
}
