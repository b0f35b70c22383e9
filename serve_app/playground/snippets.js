// Code snippets for the request whose result is shown.

import { query } from "./service.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const python = (value) => JSON.stringify(value);

export function curl({ url, name, type, asked, hasKey, draw }) {
  const lines = [
    `curl ${quoted(`${url}?${query({ ...asked, draw: false })}`)}`,
    `  --data-binary @${/^[\w.-]+$/.test(name) ? name : quoted(name)} -H ${quoted(`Content-Type: ${type}`)}`,
  ];
  if (hasKey) lines.push(`  -H "Authorization: Bearer $SCORING_KEY"`);
  if (draw) lines.push("  -H 'Accept: image/png' --output outlines.png");
  return lines.join(" \\\n");
}

export function requests({ url, name, type, asked, hasKey }) {
  const { threshold, tolerance, labels } = asked;
  const params = [`"score_threshold": ${threshold}`, `"polygon_tolerance_px": ${tolerance}`, `"holes": "rings"`];
  if (labels) params.push(`"labels": ${python(labels)}`);
  const key = hasKey ? `, "Authorization": "Bearer " + os.environ["SCORING_KEY"]` : "";
  return `${hasKey ? "import os\n\n" : ""}import requests

with open(${python(name)}, "rb") as photo:
    response = requests.post(
        ${python(url)},
        params={${params.join(", ")}},
        data=photo,
        headers={"Content-Type": ${python(type)}${key}},
        timeout=60,
    )
response.raise_for_status()
for found in response.json()[0]["boxes"]:
    print(found["label"], found["score"], len(found["polygon"]), "rings")
`;
}
