//! What people read: tables, sizes and times in words.

use std::fmt;
use std::io::Write;
use std::time::Duration;

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::print_line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Prints a line. A reader that has what it wanted (`| head`) ends the command quietly, and with 1, for it may not be done.
#[allow(clippy::exit, reason = "there is nobody left to tell, and nothing that has to be undone")]
pub fn print_line(text: fmt::Arguments<'_>) {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(1),
        Err(error) => eprintln!("error: write output: {error}"),
    }
}

/// Prints a table, its columns as wide as they need to be; `heads` names them.
pub fn print_table<const N: usize>(heads: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = std::iter::once(heads.map(str::to_string)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        say!("{}", cells.join("  ").trim_end());
    }
}

/// Many names in a few: `1, 2, 3 and 97 more`.
pub fn names(routes: &[String]) -> String {
    match routes {
        [first, second, third, rest @ ..] if rest.len() > 1 => {
            format!("{first}, {second}, {third} and {} more", rest.len())
        }
        few => few.join(", "),
    }
}

/// `1.5 MiB`
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// `34 ms`, `2.1 s`, `4 min 10 s`.
pub fn time(took: Duration) -> String {
    match took.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds => format!("{} min {:.0} s", seconds as u64 / 60, seconds % 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_times_are_short() {
        let routes: Vec<String> = (1..=6).map(|id| id.to_string()).collect();
        assert_eq!(names(&routes), "1, 2, 3 and 3 more");
        assert_eq!(names(&routes[..4]), "1, 2, 3, 4");
        assert_eq!(time(Duration::from_millis(34)), "34 ms");
        assert_eq!(time(Duration::from_secs(250)), "4 min 10 s");
    }
}
