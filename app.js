// The slider of app.py: what Gradio runs once for the HTML component `element`, whose content comes and goes by `watch`.
// It moves the border between the two pictures, zooms, and triggers "select" with the place that is to be seen closer.

let zoom = "1", share = 0.5, held = null;
const find = (selector) => element.querySelector(selector);

function draw() {
  const pane = find(".pane"), stage = find(".stage");
  if (!stage) return;
  const full = Number(stage.dataset.width), room = pane.clientWidth;
  const width = zoom === "fit" ? Math.min(room, full) : full * Number(zoom);
  const before = stage.clientWidth;
  const middle = [(pane.scrollLeft + room / 2) / before, (pane.scrollTop + pane.clientHeight / 2) / stage.clientHeight];
  stage.style.width = `${width}px`;
  if (before !== width) {
    pane.scrollLeft = middle[0] * width - room / 2;
    pane.scrollTop = middle[1] * stage.clientHeight - pane.clientHeight / 2;
  }
  stage.style.setProperty("--at", `${pane.scrollLeft + share * Math.min(room, width)}px`); // of what is to be seen
  find("input").value = 100 * share;
  for (const button of element.querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.zoom === zoom);
}

function slide(x) {
  const pane = find(".pane").getBoundingClientRect(), width = Math.min(pane.width, find(".stage").clientWidth);
  share = Math.max(0, Math.min(1, (x - pane.left) / width));
  draw();
}

function look(x, y) {
  const stage = find(".stage").getBoundingClientRect();
  trigger("select", { x: (x - stage.left) / stage.width, y: (y - stage.top) / stage.height });
}

element.addEventListener("input", (event) => {
  share = event.target.value / 100;
  draw();
});
element.addEventListener("click", (event) => {
  if (event.target.dataset.zoom) zoom = event.target.dataset.zoom;
  draw();
});
element.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !event.target.matches(".pane")) return;
  const pane = event.target.getBoundingClientRect(), stage = find(".stage").getBoundingClientRect();
  const middle = (low, high, from, to) => (Math.max(low, from) + Math.min(high, to)) / 2;
  look(middle(pane.left, pane.right, stage.left, stage.right), middle(pane.top, pane.bottom, stage.top, stage.bottom));
});
element.addEventListener("wheel", (event) => {
  const steps = ["fit", "1", "2", "4"];
  if (!event.ctrlKey || !event.target.closest(".pane")) return;
  event.preventDefault();
  zoom = steps[Math.max(0, Math.min(3, steps.indexOf(zoom) - Math.sign(event.deltaY)))];
  draw();
}, { passive: false });
element.addEventListener("scroll", draw, true);
new ResizeObserver(draw).observe(element);

// The border is dragged; a mouse drags the picture, too, as a finger does by itself; a click is no drag.
element.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".stage") || event.button) return;
  const pane = find(".pane"), border = event.target.matches("i");
  held = { border, x: event.clientX, y: event.clientY, left: pane.scrollLeft, top: pane.scrollTop, moved: false };
  if (event.pointerType === "mouse" || border) event.preventDefault();
  if (border) event.target.setPointerCapture(event.pointerId);
});
addEventListener("pointermove", (event) => {
  if (!held) return;
  held.moved ||= Math.hypot(event.clientX - held.x, event.clientY - held.y) > 4;
  if (held.border) slide(event.clientX);
  else if (held.moved && event.pointerType === "mouse") {
    find(".pane").scrollLeft = held.left + held.x - event.clientX;
    find(".pane").scrollTop = held.top + held.y - event.clientY;
  }
});
addEventListener("pointerup", (event) => {
  if (held && !held.border && !held.moved) look(event.clientX, event.clientY);
  held = null;
});
addEventListener("pointercancel", () => (held = null));

watch("value", () => {
  if (find(".stage")) draw();
});

// Gradio's slider tells of a pointer that lets go, and not of a key.
addEventListener("keyup", (event) => {
  const moves = /^(Arrow|Page|Home|End)/.test(event.key);
  if (moves && event.target.matches("#blend input[type=range]")) event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
});

// A picture may be pasted, or dropped anywhere on the page; Gradio takes it where a file is chosen, if there is none yet.
function take(file, patience = 40) {
  const input = document.querySelector("#picture input[type=file]");
  if (!file || !patience) return;
  if (!input) {
    if (patience === 40) document.querySelector("#picture button[aria-label=Clear]")?.click();
    setTimeout(() => take(file, patience - 1), 50);
    return;
  }
  const data = new DataTransfer();
  data.items.add(file);
  input.files = data.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}
addEventListener("paste", (event) => take(event.clipboardData.files[0]));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  if (!event.target.closest?.("#picture input, #picture button")) take(event.dataTransfer.files[0]);
});
