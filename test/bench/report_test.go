package main

import (
	"strings"
	"testing"
	"time"
)

func TestMedianAndPercentile(t *testing.T) {
	if got := median([]float64{3, 1, 2}); got != 2 {
		t.Error(got)
	}
	if got := median([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Error(got)
	}
	if got := median([]time.Duration(nil)); got != 0 {
		t.Error(got)
	}
	list := make([]int, 0, 1000)
	for i := range 1000 {
		list = append(list, 1000-i)
	}
	for p, want := range map[float64]int{0: 1, 50: 500, 99: 990, 100: 1000} {
		if got := percentile(list, p); got != want {
			t.Errorf("percentile %g is %d, want %d", p, got, want)
		}
	}
}

func TestVerdicts(t *testing.T) {
	r := &report{live: t.Output()}
	s := func(list ...int) (d []time.Duration) {
		for _, x := range list {
			d = append(d, time.Duration(x)*time.Second)
		}
		return d
	}
	r.addMore("a", s(3, 9, 2), s(1, 1, 1), 2*time.Second)
	r.addMore("b", s(4), s(1), 2*time.Second)
	r.addRatio("c", s(4), s(2), 2)
	r.addRatio("d", s(5), s(2), 2)
	r.addTime("e", s(6), nil, 5*time.Second)
	r.addMost("f", "%.0f MiB", []float64{10, 70}, nil, 60)
	want := `head

| what | etcd-manager | reference | compared | limit | |
|---|---|---|---|---|---|
| a | 3s (2s–9s) | 1s (1s–1s) | +2.00 s | +2 s | met |
| b | 4s | 1s | +3.00 s | +2 s | **missed** |
| c | 4s | 2s | 2.00 × | 2.00 × | met |
| d | 5s | 2s | 2.50 × | 2.00 × | **missed** |
| e | 6s | – | – | 5s | **missed** |
| f | 40 MiB (10 MiB–70 MiB) | – | – | 60 MiB | **missed** |`
	if got := r.markdown("head"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r.note("a note")
	if got := r.markdown("head"); !strings.HasSuffix(got, "\n\n- a note") {
		t.Error(got)
	}
}
