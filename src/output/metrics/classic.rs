//! Converts OpenMetrics text to the older text format of Prometheus (0.0.4), for scrapers that don't ask for the newer
//! one.
//!
//! The series are the same; only their descriptions differ: a counter and an info are described under the full name of
//! their series, an info is a gauge, and nothing marks the end.

/// The media type.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The same series, described in the older way.
pub fn text(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    // A HELP line comes right before its TYPE line, and is kept until that line decides the name.
    let mut help: Option<&str> = None;
    for line in open.lines().filter(|line| *line != "# EOF") {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = Some(described);
            continue;
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|typed| typed.split_once(' ')) else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let (suffix, kind) = match kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            other => ("", other),
        };
        if let Some((_, words)) = help.take().and_then(|described| described.split_once(' ')) {
            text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
        }
        text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_a_series_has_its_full_name() {
        let open = "# HELP a_ready Whether\n# TYPE a_ready gauge\na_ready 1\n# HELP a Its epoch\n# TYPE a info\n\
                    a_info{epoch=\"e\"} 1\n# HELP a_pages Pages read\n# TYPE a_pages counter\na_pages_total 7\n# EOF\n";
        assert_eq!(
            text(open),
            "# HELP a_ready Whether\n# TYPE a_ready gauge\na_ready 1\n# HELP a_info Its epoch\n# TYPE a_info gauge\n\
             a_info{epoch=\"e\"} 1\n# HELP a_pages_total Pages read\n# TYPE a_pages_total counter\na_pages_total 7\n"
        );
    }
}
