// The example photos; licences in examples/LICENCES.

const flickr = (id) => `https://www.flickr.com/photo.gne?id=${id}`;

export const EXAMPLES = [
  { file: "riders.jpg", alt: "riders", source: flickr(8392128987), credit: "(Flickr, CC BY 2.0)" },
  { file: "hall.jpg", alt: "a hall with people", source: flickr(30474880), credit: "(Flickr, CC BY 2.0)" },
  { file: "crossing.jpg", alt: "people at a crossing", source: flickr(3364389746), credit: "(Flickr, CC BY 2.0)" },
];
