// The page: send a photo, or frames of a video, to the API, and show what comes back.

const STEP = 0.2; // seconds of a video between two predicted frames
const part = (id) => document.getElementById(id);
const video = document.createElement("video");
video.muted = true;

let limits = {};
let shown = null; // picture that is predicted: a File, or a frame as a Blob
let name = ""; // of its file, without the ending
let answer = null;
let request = new AbortController();
let playing = false;

async function start() {
  part("address").textContent = new URL("/api/predict", location);
  const { models, limits: given } = await (await fetch("/api/models")).json();
  part("model").append(...models.map((model) => new Option(model.name)));
  limits = given;
  const mebibytes = Math.round(limits.upload / 2 ** 20);
  part("limits").textContent = `At most ${mebibytes} MiB and ${limits.megapixels} megapixels.`;
}

function fail(text) {
  part("status").textContent = "";
  part("error").textContent = text;
  part("error").hidden = !text;
}

function open(file) {
  if (!file) return;
  stop();
  fail("");
  name = file.name.replace(/\.\w+$/, "");
  part("video").hidden = true;
  if (file.type.startsWith("video/")) openVideo(file);
  else predict(file);
}

function openVideo(file) {
  part("status").textContent = "Opening the video …";
  URL.revokeObjectURL(video.src);
  video.src = URL.createObjectURL(file);
  video.onerror = () => fail("This browser cannot play the video. Use a photo, or an MP4 or WebM video.");
  video.onloadeddata = () => {
    part("video").hidden = false;
    part("time").max = Math.max(0, video.duration - 0.05);
    seek(0);
  };
}

async function seek(seconds) {
  const found = new Promise((resolve) => video.addEventListener("seeked", resolve, { once: true }));
  video.currentTime = seconds;
  part("time").value = seconds;
  part("seconds").textContent = seconds.toFixed(1);
  await found;
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  await predict(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 }));
}

async function play() {
  playing = !playing;
  part("play").textContent = playing ? "Pause" : "Play";
  let next = video.currentTime >= part("time").max ? 0 : video.currentTime;
  while (playing && next <= part("time").max) {
    await seek(next);
    next += STEP;
  }
  if (playing) stop();
}

function stop() {
  playing = false;
  part("play").textContent = "Play";
}

async function predict(picture) {
  request.abort();
  request = new AbortController();
  const { signal } = request;
  shown = picture;
  if (picture.size > limits.upload) return fail("The file is too large. Shrink the image.");
  part("status").textContent = "Predicting …";
  try {
    const query = new URLSearchParams({ model: part("model").value });
    const reply = await fetch(`/api/predict?${query}`, { method: "POST", body: picture, signal });
    const body = await reply.json();
    if (signal.aborted) return;
    if (!reply.ok) throw new Error([body.error, body.hint].filter(Boolean).join(" "));
    answer = body;
    await show(picture);
  } catch (error) {
    if (signal.aborted) return;
    stop();
    fail(error instanceof TypeError ? "The server does not answer." : error.message);
  }
}

async function show(picture) {
  const photo = new Image();
  photo.src = URL.createObjectURL(picture);
  await photo.decode();
  URL.revokeObjectURL(part("photo").src);
  part("photo").src = photo.src;
  fail("");
  part("result").hidden = false;
  const size = `${answer.width} × ${answer.height} pixels`;
  part("status").textContent = `${answer.model}: ${size}, ${answer.seconds.toFixed(2)} s`;
  part("classes").replaceChildren(...answer.classes.map(row));
  for (const kind of ["mask", "color", "confidence"]) {
    part(kind).href = `data:image/png;base64,${answer[kind]}`;
    part(kind).download = `${name}-${kind}.png`;
    part(kind).parentElement.hidden = answer[kind] === null;
  }
  const [classes, confidence] = part("view").elements.layer;
  confidence.disabled = answer.confidence === null;
  if (confidence.disabled) classes.checked = true;
  showLayer();
}

function row({ name, color, share }) {
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.backgroundColor = `rgb(${color})`;
  const line = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.append(swatch, name);
  line.append(head);
  line.insertCell().textContent = `${(100 * share).toFixed(1)} %`;
  return line;
}

function showLayer() {
  const kind = new FormData(part("view")).get("layer");
  const opacity = part("opacity").value;
  part("percent").textContent = opacity;
  part("scale").hidden = kind !== "confidence";
  part("layer").hidden = false;
  part("layer").style.opacity = opacity / 100;
  const source = part(kind).href;
  if (part("layer").src !== source) part("layer").src = source;
}

part("file").addEventListener("change", (event) => open(event.target.files[0]));
part("model").addEventListener("change", () => shown && predict(shown));
part("view").addEventListener("input", showLayer);
part("play").addEventListener("click", play);
part("time").addEventListener("change", () => {
  stop();
  seek(Number(part("time").value));
});
for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop") open(event.dataTransfer.files[0]);
  });
}
start().catch(() => fail("The server does not answer."));
