package rest

import (
	"errors"
	"iter"
)

// errEndless is what is wrong with a listing that has no end.
var errEndless = errors.New("the server says that there is more, but not where")

// Pages yields the pages of a listing. fetch gets the one that a token names, which is "" for the first, and the token of the next, which is ""
// behind the last. The errors are those of fetch, and one for a server that names the same page again.
func Pages[P any](fetch func(token string) (page P, next string, err error)) iter.Seq2[P, error] {
	return func(yield func(P, error) bool) {
		for token := ""; ; {
			page, next, err := fetch(token)
			if err == nil && next != "" && next == token {
				err = errEndless
			}
			if !yield(page, err) || err != nil || next == "" {
				return
			}
			token = next
		}
	}
}
