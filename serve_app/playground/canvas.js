// The photo with its outlines. Coordinates of objects are fractions of width and height.

const GOLDEN = 0.618034;
const MOST_SIDE = 16_384; // pixels of a canvas that every browser draws: a side, and all of them (iOS)
const MOST_PIXELS = 16_777_216;

// As pipeline/masks/draw.py: the n-th object has the same colour on the page and in drawn pictures.
export function colour(index, alpha = 1) {
  const hue = ((0.57 + index * GOLDEN) % 1) * 360;
  return `hsl(${hue} 90% ${[55, 62, 48][index % 3]}% / ${alpha})`;
}

export class PhotoView {
  constructor(canvas) {
    this.canvas = canvas;
    this.photo = null;
    this.shown = [];
    this.active = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  setPhoto(bitmap) { // null for none
    this.photo?.close?.();
    this.photo = bitmap;
    this.shown = [];
    this.canvas.hidden = !bitmap;
    this.draw();
  }

  // shown: [{object, index}], highest score first; active: index of the one to stress, or null.
  setObjects(shown, active) {
    Object.assign(this, { shown, active });
    this.draw();
  }

  #path({ polygon, holes, box }, width, height) {
    const path = new Path2D();
    const rings = polygon.length ? [...polygon, ...(holes ?? [])] : [
      [box.topX, box.topY, box.bottomX, box.topY, box.bottomX, box.bottomY, box.topX, box.bottomY],
    ];
    for (const ring of rings) {
      for (let i = 0; i < ring.length; i += 2) path[i ? "lineTo" : "moveTo"](ring[i] * width, ring[i + 1] * height);
      path.closePath();
    }
    return path;
  }

  draw() {
    if (!this.photo) return;
    const { canvas, photo } = this;
    const ratio = photo.height / photo.width;
    const wanted = (canvas.parentElement.clientWidth || 640) * Math.min(devicePixelRatio, 2);
    const fitting = Math.min(wanted, MOST_SIDE / ratio, Math.sqrt(MOST_PIXELS / ratio));
    const [width, height] = [fitting, fitting * ratio].map((side) => Math.max(Math.floor(side), 1));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.style.aspectRatio = `${photo.width} / ${photo.height}`;
    const context = canvas.getContext("2d");
    context.drawImage(photo, 0, 0, width, height);
    const unit = Math.max(Math.min(width, height) / 480, 0.8);
    for (const { object, index } of [...this.shown].reverse()) this.#outline(context, object, index, unit);
    for (const { object, index } of this.shown) {
      if (this.active === index || (this.active === null && this.shown.length <= 12)) this.#tag(context, object, index, unit);
    }
  }

  #outline(context, object, index, unit) {
    const path = this.#path(object, this.canvas.width, this.canvas.height);
    const isActive = this.active === index;
    const dimmed = this.active !== null && !isActive;
    context.globalAlpha = dimmed ? 0.35 : 1;
    context.fillStyle = colour(index, isActive ? 0.55 : 0.38);
    context.fill(path, "evenodd");
    context.lineJoin = "round";
    for (const [style, width] of [["#fff", 3.4], [colour(index), isActive ? 2.6 : 1.8]]) {
      context.strokeStyle = style;
      context.lineWidth = width * unit;
      context.stroke(path);
    }
    context.globalAlpha = 1;
  }

  #tag(context, object, index, unit) {
    const text = `${object.label} ${Math.round(object.score * 100)}%`;
    const size = 12 * unit;
    context.font = `600 ${size}px system-ui, sans-serif`;
    const width = context.measureText(text).width + size;
    const x = Math.min(Math.max(object.box.topX * this.canvas.width, 0), this.canvas.width - width);
    const y = Math.max(object.box.topY * this.canvas.height - 1.6 * size, 0);
    context.fillStyle = colour(index);
    context.beginPath();
    context.roundRect(x, y, width, 1.6 * size, 0.35 * size);
    context.fill();
    context.fillStyle = "#fff";
    context.strokeStyle = "#000a";
    context.lineWidth = 0.22 * size;
    context.strokeText(text, x + size / 2, y + 1.18 * size);
    context.fillText(text, x + size / 2, y + 1.18 * size);
  }

  // Index of the object at a pointer event, the one with the smallest box first; null for none.
  at(event) {
    const { width, height } = this.canvas;
    const place = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - place.left) / place.width) * width;
    const y = ((event.clientY - place.top) / place.height) * height;
    const context = this.canvas.getContext("2d");
    const area = ({ object: { box } }) => (box.bottomX - box.topX) * (box.bottomY - box.topY);
    const hits = this.shown.filter(({ object }) => context.isPointInPath(this.#path(object, width, height), x, y, "evenodd"));
    return hits.sort((a, b) => area(a) - area(b))[0]?.index ?? null;
  }
}
