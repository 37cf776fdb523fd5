// Leaves in all tables of the page the rows that have every word of the field; without it all are there.
for (const field of document.querySelectorAll(".row-filter")) {
  const input = field.querySelector("input"), told = field.querySelector("output");
  const rows = [...document.querySelectorAll("article tbody tr")].map(row => [row, row.textContent.toLowerCase()]);
  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every(word => text.includes(word));
      count += !row.hidden;
    }
    told.textContent = `${count} of ${rows.length} rows`;
  };
  input.addEventListener("input", show);
  field.hidden = false;
  show();
}
