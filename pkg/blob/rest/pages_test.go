package rest

import (
	"errors"
	"slices"
	"testing"
)

// TestPages: each page once, in order, and no further after an error, a server that goes in circles, or a caller that has seen enough.
func TestPages(t *testing.T) {
	next := map[string]string{"": "1", "1": "2", "2": ""}
	fetch := func(token string) (string, string, error) { return "page" + token, next[token], nil }
	var got []string
	for p, err := range Pages(fetch) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p)
	}
	if !slices.Equal(got, []string{"page", "page1", "page2"}) {
		t.Errorf("pages %q", got)
	}
	for p := range Pages(fetch) {
		if p != "page" {
			t.Errorf("%s comes after the caller has stopped", p)
		}
		break
	}
	next["2"] = "2"
	var failed error
	n := 0
	for _, err := range Pages(fetch) {
		failed = err
		n++
	}
	if !errors.Is(failed, errEndless) || n != 3 {
		t.Errorf("a page that names itself: %v after %d", failed, n)
	}
}
