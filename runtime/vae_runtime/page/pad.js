// A pad to draw on with a finger, a pen, a mouse or the keyboard.

/** A pad on `canvas` for images of `height` x `width`; `changed` is called whenever something was drawn. */
export function pad(canvas, height, width, changed) {
  const scale = Math.max(1, Math.round(320 / Math.max(height, width)));
  [canvas.width, canvas.height] = [width * scale, height * scale];
  canvas.style.aspectRatio = `${width} / ${height}`;
  const paper = document.createElement("canvas"); // what is drawn, without the keyboard's pen
  [paper.width, paper.height] = [canvas.width, canvas.height];
  const ink = paper.getContext("2d");
  const screen = canvas.getContext("2d");
  const small = document.createElement("canvas");
  [small.width, small.height] = [width, height];
  const state = { width: 2.5, colour: "#ffffff", blank: true, pen: null, down: false };
  let last = null;

  function refresh() {
    screen.drawImage(paper, 0, 0);
    if (state.pen === null) return;
    screen.beginPath();
    screen.arc(state.pen.x, state.pen.y, (scale * state.width) / 2 + 2, 0, 7);
    screen.strokeStyle = state.down ? "#ff9d6b" : "#a9b5ff";
    screen.lineWidth = 2;
    screen.stroke();
  }

  function line(from, to) {
    Object.assign(ink, { lineCap: "round", lineJoin: "round", lineWidth: scale * state.width, strokeStyle: state.colour });
    ink.beginPath();
    ink.moveTo(from.x, from.y);
    ink.lineTo(to.x + 0.01, to.y);
    ink.stroke();
    state.blank = false;
  }

  function drawn() {
    refresh();
    changed();
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) * canvas.width) / box.width, y: ((event.clientY - box.top) * canvas.height) / box.height };
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    state.pen = null;
    last = place(event);
    line(last, last);
    drawn();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last === null) return;
    for (const each of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) {
      const now = place(each);
      line(last, now);
      last = now;
    }
    drawn();
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => (last = null));

  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS) && event.key !== " ") return;
    event.preventDefault();
    const from = state.pen ?? { x: canvas.width / 2, y: canvas.height / 2 };
    const [dx, dy] = STEPS[event.key] ?? [0, 0];
    if (event.key === " " && !event.repeat) state.down = !state.down;
    const within = (value, most) => Math.min(most, Math.max(0, value));
    state.pen = { x: within(from.x + dx * scale, canvas.width), y: within(from.y + dy * scale, canvas.height) };
    if (state.down) line(from, state.pen);
    if (state.down) drawn();
    else refresh();
  });
  canvas.addEventListener("blur", () => {
    [state.pen, state.down] = [null, false];
    refresh();
  });

  function clear() {
    ink.fillStyle = "#000";
    ink.fillRect(0, 0, paper.width, paper.height);
    state.blank = true;
    refresh();
  }
  clear();

  return {
    state,
    clear,
    /** Put an image, a data URL, onto the pad. */
    async put(url) {
      const image = new Image();
      image.src = url;
      await image.decode();
      ink.imageSmoothingEnabled = false;
      ink.drawImage(image, 0, 0, paper.width, paper.height);
      state.blank = false;
      drawn();
    },
    /** What the model is to see: the drawing at its size, as a data URL of a PNG. */
    url() {
      const of = small.getContext("2d");
      of.imageSmoothingQuality = "high";
      of.drawImage(paper, 0, 0, width, height);
      return small.toDataURL("image/png");
    },
  };
}
