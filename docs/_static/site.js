// What the theme lacks for screen readers and keyboards.

const all = (selector) => document.querySelectorAll(selector);

function nameParts() {
  for (const caption of all("p.caption[role=heading]")) caption.ariaLevel = 2;
  for (const [name, selector] of [["Site", ".sidebar-drawer"], ["On this page", ".toc-drawer"]]) {
    for (const part of all(selector)) part.ariaLabel = name;
  }
}

// Parts that scroll sideways can be scrolled with the keyboard.
function focusScrollers() {
  const kinds = [["Code", ".highlight pre"], ["Table", ".table-wrapper"], ["Diagram", "p:has(> img)"]];
  for (const [kind, selector] of kinds) {
    all(selector).forEach((part, index) => {
      const scrolls = part.scrollWidth > part.clientWidth;
      const names = { tabindex: 0, role: "region", "aria-label": `${kind} ${index + 1}` };
      for (const [name, value] of Object.entries(names)) {
        if (scrolls) part.setAttribute(name, value);
        else part.removeAttribute(name);
      }
    });
  }
}

document.addEventListener("DOMContentLoaded", () => {
  nameParts();
  focusScrollers();
});
for (const event of ["load", "resize"]) window.addEventListener(event, focusScrollers);
