//! Inflates a gzip file and throws away what comes, to see what of an unpacking is the library's: `inflate FILE`.

use std::{
    error::Error,
    fs::File,
    io::{BufReader, copy, sink},
    time::Instant,
};

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: inflate FILE")?;
    let start = Instant::now();
    let size = copy(
        &mut flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 17, File::open(file)?)),
        &mut sink(),
    )?;
    println!("{:.3} s, {size} bytes", start.elapsed().as_secs_f64());
    Ok(())
}
