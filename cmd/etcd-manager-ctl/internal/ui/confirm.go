package ui

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Asker asks the operator before something that can't be taken back easily.
type Asker struct {
	// In is where answers come from, Out where questions go.
	In  io.Reader
	Out io.Writer
	// Person tells that somebody can answer.
	Person bool
}

// Confirm has the operator type a word. It returns nil if that happened, or if yes says that it
// isn't needed; where nobody can be asked, yes is needed, and without it the error is a UsageError.
func (q Asker) Confirm(ctx context.Context, yes bool, word, what string) error {
	if yes {
		return nil
	}
	if !q.Person {
		return Usagef("this needs an answer, but there is no terminal: read the text above, then add --yes to %s", what)
	}
	fmt.Fprintf(q.Out, "Type %q to %s: ", word, what)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(q.In).ReadString('\n') // an end without an answer is a no
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(q.Out)
		return errors.New("interrupted: nothing was done")
	case typed := <-answer:
		if typed != word {
			return fmt.Errorf("the answer was not %q: nothing was done", word)
		}
		return nil
	}
}
