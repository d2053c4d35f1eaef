//! Raw TCP: a line that says who answers, then whatever comes goes back.

use tokio::io::{self, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::About;

pub(super) async fn serve(mut stream: TcpStream, about: &About) {
    let (mut read, mut write) = stream.split();
    let echo = async {
        write.write_all(about.line().as_bytes()).await?;
        io::copy(&mut read, &mut write).await?;
        write.shutdown().await
    };
    drop(echo.await);
}
