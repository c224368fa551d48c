// One sound at a time; the next goes on where the last one is.
for (const article of document.querySelectorAll("article")) {
  const players = [...article.querySelectorAll("audio")];
  for (const player of players)
    player.addEventListener("play", () => {
      for (const other of document.querySelectorAll("audio"))
        if (other !== player && !other.paused) {
          if (players.includes(other)) player.currentTime = other.currentTime;
          other.pause();
        }
    });
}
