for (const figure of document.querySelectorAll("figure.player")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [screen, button, slider, time, jump] = ["pre", "button", "input", "output", "select"].map((name) => figure.querySelector(name));
  figure.querySelector(".controls").hidden = false;
  slider.value = data.end;
  time.textContent = `${(data.end / 1000).toFixed(1)} s`;
  for (const [ms, text] of data.marks) jump.add(new Option(`${(ms / 1000).toFixed(2)} s  ${text}`, ms));
  let rows = [], next = 0, timer = 0;
  const show = (ms) => {
    if (next > 0 && data.frames[next - 1][0] > ms) { rows = []; next = 0; }
    for (; next < data.frames.length && data.frames[next][0] <= ms; next++)
      for (const [row, text] of data.frames[next][1]) rows[row] = text;
    screen.textContent = Array.from({ length: data.rows }, (_, row) => rows[row] ?? "").join("\n");
    slider.value = ms;
    time.textContent = `${(ms / 1000).toFixed(1)} s`;
  };
  const stop = () => { cancelAnimationFrame(timer); timer = 0; button.textContent = "Play"; };
  const play = () => {
    const from = Number(slider.value) >= data.end ? 0 : Number(slider.value), begun = performance.now();
    button.textContent = "Pause";
    const tick = (now) => {
      const ms = Math.min(from + now - begun, data.end);
      show(ms);
      if (ms < data.end) timer = requestAnimationFrame(tick); else stop();
    };
    timer = requestAnimationFrame(tick);
  };
  button.onclick = () => (timer ? stop() : play());
  slider.oninput = () => { stop(); show(Number(slider.value)); };
  jump.onchange = () => { if (jump.value) { stop(); show(Math.max(0, Number(jump.value) - 500)); play(); } jump.value = ""; };
}
