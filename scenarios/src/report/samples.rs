//! The raw samples beside a report, so that anyone can compute its figures again.
//!
//! One CSV file a probe: `due_ns,answer_ns`, the second field empty where no answer came; both on the run's clock.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use lab_protocol::ProbeKind;

use super::{Series, name_of};

pub(super) fn file_name(probe: &str) -> String {
    format!("samples/{probe}.csv")
}

pub(super) fn write(folder: &Path, all: &[(ProbeKind, Series)]) -> io::Result<()> {
    fs::create_dir_all(folder.join("samples"))?;
    for (kind, series) in all {
        let mut file = BufWriter::new(File::create(folder.join(file_name(name_of(*kind))))?);
        writeln!(file, "due_ns,answer_ns")?;
        for sample in &series.samples {
            match sample.answer_ns {
                Some(answer) => writeln!(file, "{},{answer}", sample.due_ns)?,
                None => writeln!(file, "{},", sample.due_ns)?,
            }
        }
        file.flush()?;
    }
    Ok(())
}
