// Checks of a page, run in the browser by TestPages. The result is a list of what is wrong.
(() => {
  const problems = [];
  const parse = c => {
    const m = c.match(/rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)/);
    return m ? { rgb: [+m[1], +m[2], +m[3]], a: m[4] === undefined ? 1 : +m[4] } : null;
  };
  const luminance = rgb => {
    const [r, g, b] = rgb.map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (x, y) => {
    const [a, b] = [luminance(x), luminance(y)].sort((p, q) => q - p);
    return (a + 0.05) / (b + 0.05);
  };
  const behind = e => {
    const box = e.closest('.box');
    if (box) return parse(getComputedStyle(box.querySelector('rect')).fill).rgb;
    for (let x = e; x; x = x.parentElement) {
      const c = parse(getComputedStyle(x).backgroundColor);
      if (c && c.a === 1) return c.rgb;
    }
    return [255, 255, 255];
  };
  const shown = e => e.checkVisibility({ checkVisibilityCSS: true }) && !e.closest('.skip');
  // Text: 4.5 to 1, large text 3 to 1.
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = walker.nextNode());) {
    const e = n.parentElement, words = n.data.trim();
    if (!words || !shown(e) || ['TITLE', 'DESC', 'STYLE'].includes(e.tagName.toUpperCase())) continue;
    const s = getComputedStyle(e), colour = parse(e.closest('svg') ? s.fill : s.color), size = parseFloat(s.fontSize);
    const least = size >= 24 || size >= 18.66 && +s.fontWeight >= 700 ? 3 : 4.5, got = contrast(colour.rgb, behind(e));
    if (got < least) problems.push(`contrast ${got.toFixed(2)} of "${words.slice(0, 40)}"`);
    if (size < 12 && !e.closest('svg')) problems.push(`"${words.slice(0, 40)}" has ${size} px`);
    const r = document.createRange();
    r.selectNodeContents(n);
    const b = r.getBoundingClientRect();
    const word = e.closest('td') && !e.closest('.note') && /^[\w.-]{1,12}$/.test(words);
    if (word && r.getClientRects().length > 1) problems.push(`"${words}" is broken`);
    if (!e.closest('thead') && (b.left < -1 || b.right > document.documentElement.clientWidth + 1)) problems.push(`"${words.slice(0, 40)}" is cut off`);
  }
  // Signs: 3 to 1.
  for (const [selector, property] of [['.mark .fill', 'fill'], ['.box > rect', 'stroke'], ['.line', 'stroke'], ['.tick path', 'stroke'],
    ['.span', 'fill'], ['.gap-stripe', 'fill'], ['.axis', 'stroke'], ['.gap', 'stroke']])
    for (const e of document.querySelectorAll(selector)) {
      if (!shown(e)) continue;
      const c = parse(getComputedStyle(e)[property]), card = e.closest('.mark, .tick, .line, .axis') ? behind(e) : behind(e.closest('section') || e);
      if (c && contrast(c.rgb, card) < 3) problems.push(`contrast ${contrast(c.rgb, card).toFixed(2)} of ${selector}`);
    }
  // Drawings: all texts inside, and the name of a box apart from its role.
  for (const svg of document.querySelectorAll('svg.picture, main > section > svg.timeline')) {
    if (!shown(svg)) continue;
    const out = svg.getBoundingClientRect();
    for (const x of svg.querySelectorAll('text')) {
      const b = x.getBoundingClientRect();
      if (b.left < out.left - 1 || b.right > out.right + 1 || b.top < out.top - 2 || b.bottom > out.bottom + 2) problems.push(`"${x.textContent}" leaves its drawing`);
      if (parseFloat(getComputedStyle(x).fontSize) * out.width / svg.viewBox.baseVal.width < 11) problems.push(`"${x.textContent}" is too small`);
    }
    for (const g of svg.querySelectorAll('.box')) {
      const box = g.querySelector('rect').getBoundingClientRect();
      for (const x of g.querySelectorAll('text')) if (x.getBoundingClientRect().right > box.right) problems.push(`"${x.textContent}" leaves its box`);
      const right = g.querySelector('.right')?.getBoundingClientRect();
      for (const x of right ? g.querySelectorAll('text:not(.right)') : []) {
        const b = x.getBoundingClientRect();
        if (b.bottom > right.top + 4 && b.top < right.bottom - 4 && b.right > right.left - 4) problems.push(`"${x.textContent}" touches the role`);
      }
    }
    const labels = [...svg.querySelectorAll(':scope > text')].map(x => x.getBoundingClientRect()).sort((p, q) => p.left - q.left || p.top - q.top);
    for (let i = 1; svg.classList.contains('timeline') && i < labels.length; i++)
      if (labels[i].left < labels[i - 1].right + 2) problems.push('labels of the time line touch each other');
  }
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth) problems.push(`it is ${document.documentElement.scrollWidth} px wide`);
  // What can be clicked is large enough for a thumb.
  for (const a of document.querySelectorAll('a')) if (shown(a) && a.getBoundingClientRect().height < 24) problems.push(`"${a.textContent}" is low`);
  return problems;
})()
