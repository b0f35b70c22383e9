// Requests to the service, and parsing of its responses. No DOM here.

export const LOWEST_SCORE = 0.05; // threshold of all requests, so that the score filter needs no new request

const REMEDIES = {
  unauthorized: "Enter a key above. The operator of this service can give you one.",
  image_not_decodable: "The file is damaged or is no image. Open it in a viewer and save it again as JPEG or PNG.",
  unsupported_image_format: "Save it as JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF.",
  unsupported_media_type: "Save it as JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF.",
  image_too_large: "Save it smaller, or raise image_loader.max_image_mb in serve_config.yaml.",
  body_too_large: "Save it smaller, or raise ingress.max_body_mb in serve_config.yaml.",
  too_many_pixels: "Scale it down, or raise image_loader.max_megapixels in serve_config.yaml.",
  overloaded: "The service is overloaded. Try again in a moment.",
  deadline_exceeded: "The service is busy. Try again, or raise ingress.timeout_s in serve_config.yaml.",
  internal_error: "Try again. If it persists, search the service's log for the request id.",
  file_unreadable: "Choose it again. Folders cannot be scored.",
  no_connection: "Is the service running? `make serve` starts it and prints when it is ready.",
};

export class ServiceError extends Error {
  constructor(code, message, status = 0, requestId = "") {
    super(message);
    Object.assign(this, { code, status, requestId });
  }

  get remedy() {
    return REMEDIES[this.code] ?? "";
  }
}

// The key goes as UTF-8, as the service reads its keys: fetch() takes one character for each byte.
function headersFor(key, more = {}) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  return key ? { ...more, Authorization: `Bearer ${bytes}` } : more;
}

// The type that a photo is sent with; files of other kinds go as bytes, so that they are refused as what they are: no images.
export function typeOf(photo) {
  return photo.type.startsWith("image/") ? photo.type : "application/octet-stream";
}

async function post(photo, asked, key, signal) {
  await photo.slice(0, 1).arrayBuffer().catch(() => { // fetch() does not tell an unreadable file from a lost connection
    throw new ServiceError("file_unreadable", "The file cannot be read. It was moved or changed, or it is a folder.");
  });
  return ask(`score?${asked}`, { method: "POST", body: photo, headers: headersFor(key, { "Content-Type": typeOf(photo) }), signal });
}

async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("no_connection", "The service does not answer.");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const id = response.headers.get("x-request-id") ?? "";
  throw new ServiceError(said.code ?? "error", said.message ?? response.statusText, response.status, id);
}

export async function info(key) {
  return (await ask("info", { headers: headersFor(key) })).json();
}

export async function example(file, signal) {
  return (await ask(`playground/examples/${file}`, { signal })).blob();
}

// The query of a request, without the server's defaults.
export function query({ threshold, tolerance, labels, draw }) {
  const asked = new URLSearchParams({ score_threshold: threshold, polygon_tolerance_px: tolerance, holes: "rings" });
  for (const label of labels ?? []) asked.append("labels", label);
  if (draw) asked.set("draw", "1");
  return asked;
}

export async function score(photo, { tolerance, key, signal }) {
  const began = performance.now();
  const asked = query({ threshold: LOWEST_SCORE, tolerance });
  const response = await post(photo, asked, key, signal);
  const [answer] = await response.json();
  return { objects: answer.boxes, timing: timing(response.headers.get("server-timing"), performance.now() - began) };
}

// The photo as PNG, from the service: for files that the browser cannot decode (TIFF), or would rotate though the service does not.
export async function picture(photo, key, signal) {
  const asked = new URLSearchParams({ score_threshold: 1, draw: "1" });
  return (await post(photo, asked, key, signal)).blob();
}

const STAGES = {
  fetch: "read or fetch", decode: "decode", queue: "wait for a batch", detect: "network", polygonize: "outlines", encode: "JSON", wait: "between stages",
};

// [[stage, milliseconds], …] in the order of the stages; the last is the time outside of the service.
export function timing(header, totalMs) {
  const ms = Object.fromEntries([...(header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, dur]) => [name, Number(dur)]));
  const known = Object.entries(STAGES).filter(([name]) => name in ms).map(([name, what]) => [what, ms[name]]);
  const served = known.reduce((sum, [, dur]) => sum + dur, 0);
  return { parts: [...known, ["HTTP and browser", Math.max(totalMs - served, 0)]], totalMs: Math.max(totalMs, served) };
}

// Number of points of an object's polygons, without the repeated first point of each ring.
export function points(object) {
  const count = (ring) => ring.length / 2 - (ring.at(-2) === ring[0] && ring.at(-1) === ring[1] ? 1 : 0);
  return [...object.polygon, ...(object.holes ?? [])].reduce((sum, ring) => sum + count(ring), 0);
}
