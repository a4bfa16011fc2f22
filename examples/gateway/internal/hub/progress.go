package hub

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Bar gives a Progress that draws on a terminal, one line that changes, and elsewhere writes a
// line every ten seconds.
func Bar(out io.Writer, name string) func(done, total int64) {
	terminal := false
	if file, ok := out.(*os.File); ok {
		info, err := file.Stat()
		terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	var mu sync.Mutex
	begin := time.Now()
	var first int64 = -1
	var last time.Time
	return func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if first < 0 {
			first = done // From an earlier try: it says nothing about the rate.
		}
		every := 10 * time.Second
		if terminal {
			every = 100 * time.Millisecond
		}
		if done < total && time.Since(last) < every {
			return
		}
		last = time.Now()
		line := progressLine(name, done, total, done-first, time.Since(begin))
		switch {
		case !terminal:
			fmt.Fprintln(out, line)
		case done >= total:
			fmt.Fprintf(out, "\r\x1b[K%s\n", line)
		default:
			fmt.Fprintf(out, "\r\x1b[K%s", line)
		}
	}
}

func progressLine(name string, done, total, fresh int64, took time.Duration) string {
	const mib = 1 << 20
	share := 100.0
	if total > 0 {
		share = 100 * float64(done) / float64(total)
	}
	line := fmt.Sprintf("%s: %3.0f %% of %.1f MiB", name, share, float64(total)/mib)
	if rate := float64(fresh) / took.Seconds(); rate > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		line += fmt.Sprintf(", %.1f MiB/s, %v left", rate/mib, left.Round(time.Second))
	}
	return line
}
