package page

import (
	"bytes"
	"cmp"
	"image"
	"image/color"
	"image/png"
	"slices"
	"testing"
)

// kept are the pictures that docs/status-page.md has, by situation and variant.
var kept = map[string]string{
	"a full day wide-light":                    "page-healthy-wide-light.png",
	"a full day narrow-dark":                   "page-healthy-narrow-dark.png",
	"quorum lost narrow-light":                 "page-quorum-lost-narrow-light.png",
	"quorum lost wide-dark":                    "page-quorum-lost-wide-dark.png",
	"restore runs wide-light":                  "page-restore-wide-light.png",
	"etcd can't start on one node narrow-dark": "page-disk-full-narrow-dark.png",
}

const (
	// mostHigh cuts a picture off, in pixels: what comes first matters. mostColors is what a PNG with a palette can have.
	mostHigh, mostColors = 1300, 64
	mostBytes            = 60 << 10
)

// small is a picture of at most mostBytes: its beginning, in the colors that are most frequent.
func small(t *testing.T, data []byte) []byte {
	t.Helper()
	full, err := png.Decode(bytes.NewReader(data))
	must(t, err)
	bounds := full.Bounds()
	bounds.Max.Y = min(bounds.Max.Y, bounds.Min.Y+mostHigh)
	count := map[color.RGBA]int{}
	at := func(x, y int) color.RGBA { return color.RGBAModel.Convert(full.At(x, y)).(color.RGBA) }
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			count[at(x, y)]++
		}
	}
	var all []color.RGBA
	for c := range count {
		all = append(all, c)
	}
	slices.SortFunc(all, func(x, y color.RGBA) int {
		return cmp.Or(cmp.Compare(count[y], count[x]), cmp.Compare(x.R, y.R), cmp.Compare(x.G, y.G), cmp.Compare(x.B, y.B))
	})
	var palette color.Palette
	for _, c := range all[:min(len(all), mostColors)] {
		palette = append(palette, c)
	}
	nearest := map[color.RGBA]uint8{}
	for _, c := range all {
		nearest[c] = uint8(palette.Index(c)) //nolint:gosec // below mostColors
	}
	out := image.NewPaletted(bounds, palette)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			out.SetColorIndex(x, y, nearest[at(x, y)])
		}
	}
	var b bytes.Buffer
	must(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, out))
	if b.Len() > mostBytes {
		t.Errorf("a picture for the docs has %d KiB, more than %d", b.Len()>>10, mostBytes>>10)
	}
	return b.Bytes()
}
