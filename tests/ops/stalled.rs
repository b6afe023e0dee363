//! A client that requests everything and then reads nothing: it is dropped, and meanwhile the WAL is written back as if
//! it weren't there.

use std::net::SocketAddr;
use std::time::Duration;

use rusqlite::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use crate::harness::{DEADLINE, OpsHarness};
use crate::support::holds_within;

/// Whether our end of the connection is still open, as the system has it.
fn is_served(server: SocketAddr, client: SocketAddr) -> bool {
    const ESTABLISHED: &str = "01";
    let port = |address: &str| address.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|words| {
        words.get(1..4).is_some_and(|words| {
            port(words[0]) == Some(server.port()) && port(words[1]) == Some(client.port()) && words[2] == ESTABLISHED
        })
    })
}

/// Writes the whole WAL back and resets it, which an open read transaction would prevent. While the mirror itself does
/// so, SQLite answers "busy" at once, without waiting: so this tries again, for a far shorter time than the client's
/// timeout.
async fn restart_wal(harness: &OpsHarness) -> bool {
    let path = harness.file.path();
    let restarted = tokio::task::spawn_blocking(move || {
        let connection = Connection::open(path).unwrap();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        let restart =
            || connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, i64>(0)).unwrap();
        holds_within(Duration::from_secs(5), || restart() == 0)
    });
    restarted.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_is_dropped_while_writes_and_checkpoints_go_on() {
    // Given: more than a socket's buffers take, and a client that reads none of it
    const ITEMS: usize = 3_000;
    let harness = OpsHarness::with(&["acme"]).await;
    let data = format!("\"{}\"", "x".repeat(16 << 10));
    let ids: Vec<String> = (0..ITEMS).map(|id| format!("{id}")).collect();
    let records: Vec<_> = ids.iter().map(|id| (id.as_str(), 1, Some(data.as_str()))).collect();
    harness.file.write("acme", &records).await;
    let mut client = TcpStream::connect(harness.address).await.unwrap();
    client.write_all(b"GET /api/items HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = vec![0; 1024];
    client.read_exact(&mut text).await.unwrap();
    let address = client.local_addr().unwrap();
    assert!(is_served(harness.address, address));

    // When: it goes on reading nothing, while items change
    let mut tick = interval(Duration::from_millis(250));
    let mut modified = 1;
    let dropped = async {
        while is_served(harness.address, address) {
            tick.tick().await;
            modified += 1;
            harness.file.write("acme", &[("0", modified, Some("{}"))]).await;
            assert!(restart_wal(&harness).await, "a reader is in the way");
        }
    };
    timeout(2 * DEADLINE, dropped).await.expect("the client is dropped");

    // Then: writes went on all the time, and the client gets no complete response
    assert!(modified > 20, "{modified}");
    assert_eq!(harness.file.value::<i64>("SELECT modified FROM items WHERE id = '0'"), modified);
    let result = timeout(DEADLINE, client.read_to_end(&mut text)).await.expect("the connection is closed");
    let is_complete = result.is_ok() && text.ends_with(b"0\r\n\r\n");
    assert!(!is_complete, "{} bytes came", text.len());
    assert_eq!(harness.get_text("/healthz").await.0, 200);
}
