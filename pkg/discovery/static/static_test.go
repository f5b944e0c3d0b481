package static

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	s, err := New([]Node{
		{ID: "a", Hosts: []string{"10.0.0.1", "fd00::1"}},
		{ID: "b", Hosts: []string{"[fd00::2]"}},
		{ID: "c", Hosts: []string{"c.example.com"}},
	}, 8000)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(t.Context(), []string{"x:1"}); err != nil {
		t.Error(err)
	}
	for range 2 { // what the caller does to the answer doesn't matter
		found, err := s.Find(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := found["a"]; !slices.Equal(got, []string{"10.0.0.1:8000", "[fd00::1]:8000"}) {
			t.Errorf("a: %v", got)
		}
		if got := found["b"]; !slices.Equal(got, []string{"[fd00::2]:8000"}) {
			t.Errorf("b: %v", got)
		}
		if got := found["c"]; !slices.Equal(got, []string{"c.example.com:8000"}) {
			t.Errorf("c: %v", got)
		}
		if n := len(slices.Collect(maps.Keys(found))); n != 3 {
			t.Errorf("%d nodes", n)
		}
		found["a"][0] = "spoiled"
		delete(found, "b")
	}
}

func TestRefused(t *testing.T) {
	for want, c := range map[string]struct {
		nodes []Node
		port  int
	}{
		"no id":            {[]Node{{Hosts: []string{"10.0.0.1"}}}, 8000},
		"listed twice":     {[]Node{{"a", []string{"10.0.0.1"}}, {"a", []string{"10.0.0.2"}}}, 8000},
		"has no ip":        {[]Node{{"a", nil}}, 8000},
		"both have ip":     {[]Node{{"a", []string{"fd00::1"}}, {"b", []string{"[fd00:0::1]"}}}, 8000},
		"neither an IP":    {[]Node{{"a", []string{"10.0.0.1:8000"}}}, 8000},
		"not the address":  {[]Node{{"a", []string{"0.0.0.0"}}}, 8000},
		"not between 1 an": {[]Node{{"a", []string{"10.0.0.1"}}}, 0},
	} {
		if _, err := New(c.nodes, c.port); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
