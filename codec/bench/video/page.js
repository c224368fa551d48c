// The first player of a clip leads, the others follow it.
for (const article of document.querySelectorAll("article")) {
  const videos = [...article.querySelectorAll("video")], first = videos[0];
  const play = article.querySelector(".play"), place = article.querySelector("input");
  const speed = article.querySelector("select"), step = 1 / Number(article.querySelector(".transport").dataset.rate);
  const last = () => Math.max(0, first.duration - step / 2);
  const go = time => { for (const video of videos) video.currentTime = time; };
  const stop = () => { for (const video of videos) video.pause(); play.textContent = "play"; };
  const follow = () => {
    for (const video of videos.slice(1))
      if (Math.abs(video.currentTime - first.currentTime) > step) video.currentTime = first.currentTime;
    if (first.duration) place.value = first.currentTime / first.duration;
    if (first.ended) { go(0); for (const video of videos) video.play(); }
    if (!first.paused || first.ended) requestAnimationFrame(follow);
  };
  play.addEventListener("click", () => {
    if (!first.paused) return stop();
    play.textContent = "pause";
    go(first.currentTime);
    Promise.all(videos.map(video => video.play())).then(follow);
  });
  place.addEventListener("input", () => { stop(); go(Math.min(last(), place.value * first.duration)); });
  for (const [name, sign] of [[".back", -1], [".on", 1]])
    article.querySelector(name).addEventListener("click", () => {
      stop();
      const frame = Math.floor(first.currentTime / step + 0.01) + sign;  // its middle, where no rounding can reach
      go(Math.min(last(), Math.max(0, (frame + 0.5) * step)));
      place.value = first.currentTime / first.duration;
    });
  speed.addEventListener("change", () => { for (const video of videos) video.playbackRate = Number(speed.value); });
}
