//! The mirror's performance: `cargo bench --bench mirror -- [refresh] [feeds] [idle] [latency] [push] [--items N]`.
//!
//! Each part prints its figures and the required ones; nothing fails, since machines differ: only ratios within one run
//! count. The mirror is the real binary; publisher and mirror share two cores.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod bare;
mod latency;
mod publisher;
mod push;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use publisher::BenchPublisher;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [word, feeds, items] = arguments.as_slice()
        && word == "publish"
    {
        return Ok(publisher::serve(feeds.parse()?, items.parse()?)?);
    }
    let items = arguments.iter().position(|argument| argument == "--items");
    let items = items.and_then(|at| arguments.get(at + 1)).map_or(Ok(1_000_000), |items| items.parse())?;
    let wanted = |part: &str| {
        let parts = ["refresh", "feeds", "idle", "latency", "push"];
        arguments.iter().all(|argument| !parts.contains(&argument.as_str())) || arguments.iter().any(|a| a == part)
    };
    let folder = Folder::new()?;
    if wanted("refresh") {
        refresh(&folder.0, items)?;
    }
    if wanted("feeds") {
        feeds(&folder.0, items)?;
    }
    if wanted("idle") {
        idle(&folder.0)?;
    }
    if wanted("latency") {
        latency::beside_a_refresh(&folder.0.join("latency.db"))?;
    }
    if wanted("push") {
        push::measure(&folder.0)?;
    }
    Ok(())
}

/// One feed: first load, bare writer, replay; several rounds of them, and the median of each figure and ratio.
fn refresh(folder: &Path, items: usize) -> Result<(), Box<dyn std::error::Error>> {
    const ROUNDS: usize = 3;
    println!("one feed of {items} items, gzip, pages of {}; {ROUNDS} rounds", publisher::PAGE);
    let publisher = BenchPublisher::start(1, items)?;
    let (database, bare) = (folder.join("refresh.db"), folder.join("bare.db"));
    let feed = format!("bench={}", publisher.url(0));
    let sync = ["sync", &feed, "--json", "--db", path(&database)];
    let mut ratios = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        remove(&database)?;
        remove(&bare)?;
        let rate = |seconds: f64| items as f64 / seconds;
        sync_disk()?;
        let first = BinaryRun::of(&sync)?;
        let loaded = rate(first.seconds());
        println!("  first load      {loaded:9.0} items/s   {}   (at least 80,000, 128 MiB)", first.figures());
        sync_disk()?;
        let bare = rate(bare::write(&bare, items as u64)?.as_secs_f64());
        println!("  bare writer     {bare:9.0} items/s   ratio {:.2}", loaded / bare);
        sync_disk()?;
        BinaryRun::of(&["seek", "bench", &publisher.url(0), "--db", path(&database)])?;
        let replay = BinaryRun::of(&sync)?;
        let replayed = rate(replay.seconds());
        println!("  replay          {replayed:9.0} items/s   ratio {:.2}   {}", replayed / loaded, replay.figures());
        ratios[0].push(loaded / bare);
        ratios[1].push(replayed / loaded);
    }
    let [bare, replay] = ratios.map(median);
    println!("  of the bare     {bare:9.2}   in the median (at least 0.9)");
    println!("  replay          {replay:9.2} times a first load, in the median (at least 3)");
    println!("  file            {:9.0} MiB", std::fs::metadata(&database)?.len() as f64 / 1_048_576.0);
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Waits until earlier writes are on the disk, so that no part pays for the one before it.
fn sync_disk() -> Result<(), Box<dyn std::error::Error>> {
    if !Command::new("sync").status()?.success() {
        return Err("sync failed".into());
    }
    Ok(())
}

/// Removes the database of the previous round and the files beside it.
fn remove(database: &Path) -> std::io::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        match std::fs::remove_file(format!("{}{suffix}", database.display())) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// 500 feeds at once.
fn feeds(folder: &Path, items: usize) -> Result<(), Box<dyn std::error::Error>> {
    let (feeds, each) = (500, items.min(1_000_000) / 500);
    println!("{feeds} feeds of {each} items at once");
    let publisher = BenchPublisher::start(feeds, each)?;
    let config = folder.join("feeds.toml");
    write_config(&config, &publisher, feeds, "feeds.db", "")?;
    let run = BinaryRun::of(&["--config", path(&config), "sync", "--json"])?;
    let rate = (feeds * each) as f64 / run.seconds();
    println!("  in total        {rate:9.0} items/s   {}   (at least 130,000, 256 MiB)", run.figures());
    Ok(())
}

/// 1,000 level feeds where nothing happens, polled as rarely as after a while. An earlier run has loaded them.
fn idle(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const IDLE_WARMUP_TIME: Duration = Duration::from_secs(20);
    const IDLE_MEASURE_TIME: Duration = Duration::from_secs(60);
    println!("1,000 level, idle feeds");
    let publisher = BenchPublisher::start(1_000, 100)?;
    let config = folder.join("idle.toml");
    write_config(&config, &publisher, 1_000, "idle.db", "[poll]\nmin = \"9m\"\n[ops]\nlisten = \"127.0.0.1:0\"\n")?;
    let loaded = BinaryRun::of(&["--config", path(&config), "sync", "--json"])?;
    println!("  their load                {}", loaded.figures());
    let mut child = binary(&["--config", path(&config), "-q", "run"]).spawn()?;
    std::thread::sleep(IDLE_WARMUP_TIME);
    let before = cpu(&child)?;
    std::thread::sleep(IDLE_MEASURE_TIME);
    let spent = cpu(&child)? - before;
    let peak = peak(&child);
    child.kill()?;
    child.wait()?;
    println!(
        "  one core        {:9.2} %   {:.0} MiB   (under 2 %, 150 MiB)",
        100.0 * spent / IDLE_MEASURE_TIME.as_secs_f64(),
        peak as f64 / 1024.0
    );
    Ok(())
}

fn write_config(path: &Path, publisher: &BenchPublisher, feeds: usize, db: &str, more: &str) -> std::io::Result<()> {
    let mut text = format!("database = \"{db}\"\n{more}[http]\nper_host = 16\n");
    for feed in 0..feeds {
        text.push_str(&format!("[feeds.f{feed}]\nurl = \"{}\"\n", publisher.url(feed)));
    }
    std::fs::write(path, text)
}

/// A finished run of the real binary.
struct BinaryRun {
    wall: Duration,
    cpu: f64,
    peak_kib: u64,
}

impl BinaryRun {
    fn of(arguments: &[&str]) -> Result<Self, Box<dyn std::error::Error>> {
        let began = Instant::now();
        let mut child = binary(arguments).spawn()?;
        let (mut last_cpu, mut last_peak) = (0.0, 0);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            last_cpu = cpu(&child).unwrap_or(last_cpu);
            last_peak = peak(&child).max(last_peak);
            std::thread::sleep(Duration::from_millis(20));
        };
        if !status.success() {
            return Err(format!("feedmirror {arguments:?} ended with {status}").into());
        }
        Ok(Self { wall: began.elapsed(), cpu: last_cpu, peak_kib: last_peak })
    }

    fn seconds(&self) -> f64 {
        self.wall.as_secs_f64()
    }

    fn figures(&self) -> String {
        format!("{:.1} s, {:.1} s of CPU, {:.0} MiB", self.seconds(), self.cpu, self.peak_kib as f64 / 1024.0)
    }
}

fn binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Seconds of CPU, from `/proc/PID/stat` (proc(5): fields 14 and 15, in hundredths).
fn cpu(child: &Child) -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let after = stat.rsplit_once(')').ok_or("no command in stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

/// Peak resident memory in KiB; 0 once the process has ended.
fn peak(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

/// A folder beside the build: a temporary file system in memory would hide what writing costs.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
